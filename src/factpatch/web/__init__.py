"""The page in the browser: facts in, and what became of them, for people who do not program."""
