"""The exercises of the course: built from one teacher's source, checked with helpful words."""
