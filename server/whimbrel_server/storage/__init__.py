"""What a server must not forget: three small protocols (`protocols.py`) and their back ends."""
