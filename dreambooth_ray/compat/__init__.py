"""The places that touch private API of other libraries: one module a library, one test a use."""
