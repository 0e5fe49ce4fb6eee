"""A release's canary: what comes next (`advance`, pure), and the hand that does it (`Drive`). No Airflow."""
