"""What every room stands on: errors as sentences, files that survive a kill, random draws, callbacks for progress."""
