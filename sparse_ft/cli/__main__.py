"""`python -m sparse_ft.cli`, and so `torchrun --nproc-per-node 2 -m sparse_ft.cli finetune …`."""

from sparse_ft_command import main

raise SystemExit(main())
