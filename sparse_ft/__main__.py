from .module_command import main

raise SystemExit(main())
