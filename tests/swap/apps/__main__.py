"""Run one of the apps, whose mail goes to the MAIL_URL of the environment.

Flask-Mail cannot be imported, whether it is installed or not.
"""

from __future__ import annotations

import importlib
import sys

sys.modules["flask_mail"] = None  # type: ignore[assignment]

if __name__ == "__main__":
    importlib.import_module(f"tests.swap.apps.{sys.argv[1]}").main()
