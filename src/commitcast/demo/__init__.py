"""The demo: a chat with an agent in plain HTML, whose every step is committed before it is shown.

`commitcast demo` starts it. Read `app.py` for how it is put together, `posting.py` and
`answers.py` for its two operations, `chat.py` and `journal.py` for where rows and events meet in
one transaction, `agent.py` for what the agent may do, `faults.py` for how to break it.
"""
