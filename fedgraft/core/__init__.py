"""What every other package builds on: errors, files that survive a kill, random draws, progress callbacks."""
