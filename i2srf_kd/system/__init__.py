"""What everything else stands on: errors, files, locks, processes, progress. Standard library only."""
