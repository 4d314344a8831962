"""The crash campaigns: a loaded server is killed or stopped at random instants; a checker compares.

`commitcast chaos kill` and `commitcast chaos stop` run them. `command` is what one types,
`campaign` and `stops` are the two campaigns, `trial` what they share; `server`, `workload`,
`announced` and `attempt` the program that is killed, `process` the killing, `audience` and
`reader` the clients; `evidence` reads back what the database holds, `checker` and
`operation_checker` say which guarantee broke, `report` sums it up.
"""
