"""How the embedded backbone `mini` was made and measured."""
