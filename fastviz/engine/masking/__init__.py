"""Images of which parts are left out: what the target says of many of them."""
