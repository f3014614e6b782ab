"""The OpenAI API: what it takes, what it gives, and its errors."""
