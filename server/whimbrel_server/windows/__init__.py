"""One masking window on the server: its run (pure), what must be durable before anybody is told, and its life in the shell."""
