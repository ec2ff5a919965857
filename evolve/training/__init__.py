"""Training, shared by the stages that train: rows of tokens, their order, arguments, adapters, one trainer."""
