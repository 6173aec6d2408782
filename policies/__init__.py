"""Built-in scheduling policies, registered as a third party's would be."""
