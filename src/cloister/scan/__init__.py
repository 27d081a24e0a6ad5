"""Look through past conversations for replies that carried another user's details.

``transcripts`` reads the forms in which people keep conversations, ``files`` brings their lines in the order of time,
``judge`` plays them through the leak detector, and ``report`` and ``page`` say what came of it.
"""
