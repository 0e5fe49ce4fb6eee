"""The Releases page: what the fleet serves, and what each release counted, decided and did. It only reads.

| module                                | what                                                                   |
|---------------------------------------|------------------------------------------------------------------------|
| `app`, `access`                       | the FastAPI app: every route behind the sign-in, and the headers       |
| `routes`, `render`, `words`           | the pages and the same as JSON; their HTML, their words                |
| `fleet`, `service`, `release`, `past` | what each page shows, as plain data                                    |
| `live`, `evidence`, `course`, `traffic`, `timeline` | what stands now; what the charts show                    |
| `sources`, `cluster`                  | what is read, part by part: one that is down leaves the others         |
| `airflow`                             | sources and sign-in as Airflow has them; nothing else here imports it  |

`static/vendor` is uPlot 1.6.32 as its makers published it (npm, MIT): Grafana's chart library, in 51 kB, and one that
needs no exception from the page's Content-Security-Policy.
"""
