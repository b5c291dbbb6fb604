"""What `whimbrel-lab` runs on a fleet: the demo, lessons, one large window, the codec's report."""
