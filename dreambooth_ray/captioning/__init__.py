"""Captions of photographs by a vision model, over the chat API that OpenAI's servers have."""
