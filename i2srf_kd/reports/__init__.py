"""Result tables and pictures."""
