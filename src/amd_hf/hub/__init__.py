"""Publishing: complete Hub repositories, model cards and the Space, each in one commit."""
