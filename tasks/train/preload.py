"""What the zygote imports before it forks ranks: a rank then starts in a fraction of a second.

Importing this module imports the libraries and everything that a rank would import later and slowly. It makes no tensor, no
group and no engine, and starts no thread, since none of them survives a fork.
"""

import tasks.train.libraries
import tasks.train.loop
import tasks.train.session

tasks.train.libraries.import_libraries()
