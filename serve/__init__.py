"""The endpoint: any subject, any scene, over HTTP."""
