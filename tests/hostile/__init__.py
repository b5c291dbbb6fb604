"""A hostile server, with a cohort under its thumb, for any client that speaks the device listener.

`python -m tests.hostile --list` names the attacks. `attacks.py` and the tables beside it say what each one does, `world.py`
plays the server, `listener.py` is its HTTP, `verdict.py` judges what the client let out.
"""
