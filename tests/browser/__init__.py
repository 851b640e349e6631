"""The widgets in a real browser: `make browser`. Plain `make test` leaves this folder out."""
