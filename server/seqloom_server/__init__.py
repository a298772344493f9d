"""The Seqloom server: gathers remote callers' sequences into shared batches and runs recurrent networks over them."""
