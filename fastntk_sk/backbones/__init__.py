"""From a name, a module or a factory to a frozen network, and from pictures to its input."""
