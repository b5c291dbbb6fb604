"""The two HTTP listeners: what a request may look like, who may send it, how it is answered. Decisions are made elsewhere."""
