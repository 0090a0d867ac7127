"""Looking at storage again and again, whatever it answers in between."""

from collections.abc import Callable


class ErrorTolerantCheck:
    """A look that is repeated: an error is said once, and never ends the looking."""

    def __init__(self, purpose: str, say: Callable[[str], None]) -> None:
        """purpose: what is done, for people: "looking for requests to stop" """
        self._purpose, self._say = purpose, say
        self._said_kinds: set[type[BaseException]] = set()

    def run(self, look: Callable[[], None]) -> bool:
        """Look once; whether that went well. The same kind of error is said once."""
        try:
            look()
        except Exception as error:
            if type(error) not in self._said_kinds:
                self._said_kinds.add(type(error))
                error_text = " ".join(str(error).split())[:300]
                self._say(
                    f"warning: {self._purpose} failed ({type(error).__name__}: {error_text}); "
                    "it is tried again"
                )
            return False
        return True
