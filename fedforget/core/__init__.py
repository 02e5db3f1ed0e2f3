"""What everything else rests on: sums that do not depend on their order."""
