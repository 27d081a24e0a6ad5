"""The server: OpenAI's and Anthropic's APIs, with every user's conversations apart."""
