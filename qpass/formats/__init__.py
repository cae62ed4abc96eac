"""File formats: bytes <-> `Model`, one file a format; `files` finds, loads and saves them."""
