"""`make dist`: what is given away, the same bytes from the same files. In dist/: wheels, chart, image."""
