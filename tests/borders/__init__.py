"""What people bring is understood or refused: each kind of input as a table of cases."""
