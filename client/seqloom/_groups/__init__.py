"""Groups of live streams that are opened together and advanced by arrays, on the call that all sessions share."""
