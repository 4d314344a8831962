"""The demo: a chat with an agent in plain HTML, whose every step is committed before it is shown.

`commitcast demo` starts it. Read `app.py` for how it is put together, `chat.py` and `runs.py` for
where rows and events meet in one transaction, `agent.py` for what the agent may do.
"""
