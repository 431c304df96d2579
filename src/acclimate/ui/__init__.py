"""The web page of the server: try both pipelines, watch what was recorded, operate the server.

It is made with NiceGUI, which runs inside the server's own FastAPI application and ships every script, style and font,
so that the page needs no other host. One process can serve one page: NiceGUI keeps its application in a module.
"""
