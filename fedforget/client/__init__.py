"""The runtime of a node: data and network on its device, clients at work, and models that answer an audit."""
