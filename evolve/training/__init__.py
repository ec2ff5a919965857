"""Training, shared by the stages that train: rows of tokens, arguments, adapters, one trainer."""
