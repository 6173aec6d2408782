"""The scheduler: events in, commands out; no I/O, no clock, no asyncio, no logging."""
