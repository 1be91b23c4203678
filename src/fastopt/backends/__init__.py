"""What the engine has to know of a framework's buffers, one file a framework."""
