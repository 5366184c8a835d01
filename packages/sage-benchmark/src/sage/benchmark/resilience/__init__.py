"""The long tests of the serving process: chaos, soak, fuzz, on the real process and real sockets."""
