"""Who trains when, and what a round comes to: pure, with the time as an argument. No I/O belongs here."""
