"""The promises of the design, checked after every event, each by what the event touched."""
