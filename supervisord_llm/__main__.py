"""`python -m supervisord_llm`: the same as the `llm-supervisor` command."""

import sys

from supervisord_llm.cli.main import main

sys.exit(main())
