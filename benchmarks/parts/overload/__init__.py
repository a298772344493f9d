"""What a server does when more is offered than it can do."""
