"""The parts of the page: each makes its own controls and says what they do."""
