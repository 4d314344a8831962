"""The crash campaign: a loaded server is killed at random instants, and a checker compares.

`commitcast chaos kill` runs it. `command` is what one types, `campaign` the whole run,
`server` and `workload` the program that is killed, `process` the killing, `reader` the
clients, `evidence` reads back what the database holds, `checker` says which guarantee broke,
`report` sums it up.
"""
