"""The backend side of HTTP: client, header filter, byte relay, usage readers, scraper. No scheduling here."""
