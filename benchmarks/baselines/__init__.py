"""What stands beside Seqloom, in processes of their own: the network alone, autograd, bare gRPC."""
