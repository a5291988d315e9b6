"""Where clients come in: sockets, TLS, connections, and aiohttp's protocol with our manners."""
